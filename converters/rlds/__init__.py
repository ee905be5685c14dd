"""Reading TFDS/RLDS directories without TensorFlow."""
