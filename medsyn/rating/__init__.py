"""Ratings by experts: the page that they open, and the files that go out and come back."""
