"""Adapters that control a model: sliders between conditions or along an attribute, and styles of given images."""
