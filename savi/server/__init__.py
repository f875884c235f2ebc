"""Models behind OpenAI-compatible servers, asked as a local model is.

Frames and prompts in; replies out. It must not know what is asked, nor what becomes of the replies.
"""
