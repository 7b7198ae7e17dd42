"""Continuous-time representation learning over linked EHR events and wearable signals, in JAX."""
