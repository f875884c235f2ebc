"""What a report lets a reader browse: questions and preference pairs as compact data, with frames and videos.

In: `RunData`. Out: JSON for the page's own script, and addresses that name one question. It must not know HTML."""
