"""Figures: Plotly layouts, comparison charts, training curves, and where their labels go."""
