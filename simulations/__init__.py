"""One machine plays the whole federation."""
