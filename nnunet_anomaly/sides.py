"""Words for the sides of a patient, as files and messages have them."""

LEFT, RIGHT, NEITHER = "left", "right", "neither"
