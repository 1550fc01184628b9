"""The joblib-shaped front."""
