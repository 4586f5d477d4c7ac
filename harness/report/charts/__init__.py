"""Figures: Plotly layouts, comparison charts, training curves, and label placement."""
