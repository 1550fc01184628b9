"""What is sold, and for how much."""

PRICES = {"mug": 9.5, "shirt": 24.0, "poster": 15.25, "lamp": 79.0}
