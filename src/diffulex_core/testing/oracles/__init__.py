"""What is right, said slowly: oracles that share no helper with the code under test."""
