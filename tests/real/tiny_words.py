"""The vocabulary of the model that tiny_model.py makes: the words w0, w1 and so on, which are tokens 0, 1 and so on."""

WORDS = 512
FIRST_WORD = 2  # after those that begin and end a text
