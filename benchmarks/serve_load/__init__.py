"""A server under load and under attack: every answer is checked, and what it left behind is counted."""
