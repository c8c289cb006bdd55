// Dialogs, copying and filters: every one of them is also a plain link or form without this file.
(() => {
  const dialog = () => document.getElementById("dialog");

  // <a data-dialog href=...>: the page behind the link, in a dialog over this one.
  document.addEventListener("click", async (event) => {
    const link = event.target.closest("a[data-dialog]");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    const answer = await fetch(link.href, { headers: { "X-Dialog": "1" } });
    if (!answer.ok || answer.redirected) { location.assign(link.href); return; }
    dialog().innerHTML = await answer.text();
    dialog().showModal();
    dialog().querySelector("[autofocus], .actions .button")?.focus();
    dialog().addEventListener("close", () => document.getElementById(link.id)?.focus(), { once: true });
  });
  document.addEventListener("click", (event) => {
    if (!event.target.closest("[data-close]") || !dialog().open) return;
    event.preventDefault();
    dialog().close();
  });

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    const text = document.getElementById(button.dataset.copy).textContent;
    try {
      await navigator.clipboard.writeText(text);
      button.querySelector("span").textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(document.getElementById(button.dataset.copy));
    }
  });

  // Filters go into the address as soon as they change; typing waits for a pause.
  let typing = 0;
  const submit = (form) => {
    for (const field of form.elements) if (!field.value && field.name) field.disabled = true;
    form.requestSubmit();
  };
  document.addEventListener("change", (event) => {
    const form = event.target.closest("form[data-auto]");
    if (form && event.target.type !== "search") submit(form);
  });
  document.addEventListener("input", (event) => {
    const field = event.target.closest("form[data-auto] input[type=search]");
    if (!field) return;
    clearTimeout(typing);
    typing = setTimeout(() => htmx.trigger(field.form, "typed"), 250);
  });

  document.addEventListener("htmx:afterSwap", (event) => {
    const rows = event.target.closest?.("[data-announce]") ?? document.querySelector("[data-announce]");
    const announcer = document.getElementById("announcer");
    if (rows && announcer && event.detail.requestConfig?.triggeringEvent?.type !== "live") {
      announcer.textContent = rows.dataset.announce;
    }
  });
})();
