"""Moving in: what another board has is taken into this one."""
