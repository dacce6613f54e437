"""Runs a model on calibration data and adds up what its values show, within a budget of memory."""
