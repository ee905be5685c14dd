"""Writing dataset directories in other formats: RLDS, and LeRobot."""
