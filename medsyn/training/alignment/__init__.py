"""Alignment: what raters taught the Selector and the Policy, taught to the generator."""
