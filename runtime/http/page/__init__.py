"""The chat page at `/`: a conversation with the model in a browser, or with two models side by side.

    files            the page's static files, each with its headers and its tag
    routes           `/`, the files under `/ui/`, and `/ui/status`, which the page polls
    index.html, style.css, *.js, icon.svg     what the browser gets; no build step, nothing from elsewhere

    theme.js         dark or light, before anything is drawn
    app.js           the page as a whole: what is sent where, and when
    conversation.js  turns, settings and keys, kept for as long as the tab is open
    servers.js       one OpenAI-compatible server: what it is, and answers as they stream; what went wrong in plain words
    facts.js         what the page says of its servers
    panels.js        what stands around the conversation: theme, notes, dialogs, downloads
    answers.js       how turns and answers look, and two speeds next to each other
    markdown.js      Markdown to elements; text is never read as HTML

What enters: GET and HEAD requests. What leaves: the files, and a JSON object on the server. May import: what the server's other
routes do. The page itself uses the public API; it is not guarded by the key, the API is.
"""
