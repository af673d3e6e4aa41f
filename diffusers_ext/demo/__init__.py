"""A page in the browser: sample a model step by step, two settings side by side, and samplers against the exact flow.

`app.build_app` needs Gradio, the extra `demo`; the other files do not.
"""
