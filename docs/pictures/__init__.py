"""The pictures of the strategy pages, drawn from the code that they are about: `python -m docs.pictures`."""
