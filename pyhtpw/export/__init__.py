"""Images and networks in the forms that other tools read."""
