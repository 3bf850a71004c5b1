"""What runs beside the untrusted program. `sandbox.outside` never imports it."""
