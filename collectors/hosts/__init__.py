"""A run's ticks from the collectors of several load hosts: packed there, merged here. Histograms are added, never averaged."""
