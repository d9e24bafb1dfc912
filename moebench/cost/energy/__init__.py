"""Power and energy of serving: fitted to measured servings, with intervals."""
