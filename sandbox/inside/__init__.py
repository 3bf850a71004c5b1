"""Code that runs in the worker, beside untrusted programs. `sandbox.outside` never imports it."""
