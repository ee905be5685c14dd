"""Operations of computed features: frozen dataclasses that are pure functions of arrays."""
