"""Tests, as the folders of lm/ lie; tiny.py and model/reference.py are what several of them share."""
