// What Gradio's components lack: names and roles that screen readers need, added whenever the page
// changes; the key Enter shows a thinking; and the same picture can be chosen twice in a row.
() => {
    const each = (selector, change) => document.querySelectorAll(selector).forEach(change);

    function name() {
        each(".examples[role=list]", (list) => list.removeAttribute("role"));
        each("[role=listitem].thumbnail-wrapper", (item) => item.setAttribute("role", "group"));
        each("#conversation .image-container button:not([aria-label])", (button) => {
            const address = button.querySelector("img")?.src ?? "";
            const file = decodeURIComponent(address.split("/").pop());
            button.setAttribute("aria-label", "Enlarge the picture " + file);
        });
        // The whole line of a thinking is a button around a button; the inner one is enough.
        each("#conversation [role=button].title", (line) => {
            line.removeAttribute("role");
            line.removeAttribute("tabindex");
        });
        each("#conversation .title button[aria-label='']", (button) =>
            button.setAttribute("aria-label", "Show or fold the thinking"));
    }

    // Enter on that inner button is a click as well, which would fold again what the line, to which
    // the key goes on, has just shown.
    document.addEventListener("keydown", (event) => {
        if (event.key === "Enter" && event.target.closest("#conversation .title button"))
            event.stopPropagation();
    }, true);

    // A browser tells of a choice only where it differs from the last.
    document.addEventListener("change", (event) => {
        const field = event.target;
        if (field.type === "file") setTimeout(() => { field.value = ""; });
    });

    let isPlanned = false;
    const observer = new MutationObserver(() => {
        if (isPlanned) return;
        isPlanned = true;
        requestAnimationFrame(() => { isPlanned = false; name(); });
    });
    observer.observe(document.body, {
        childList: true, subtree: true, attributes: true, attributeFilter: ["role", "aria-label"],
    });
    name();
    document.body.dataset.ready = "true";
}
