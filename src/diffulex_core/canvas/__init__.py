"""Fixed-length generation: a canvas of masks behind the prompt, fed whole in every step under full attention.

Requests and patterns live in `request` and `pattern`, what strategies build them from in `schedule`, `choice`, `rule`,
`options` and `params`. Importing the package imports none of them.
"""
