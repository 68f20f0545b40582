// What goes on, asked for every other second while somebody looks, and put in the place of what stood there.
(() => {
  const EVERY = 2000;
  const LATER = 10000; // where nobody answers
  const byId = (id) => document.getElementById(id);
  const parsed = (html) => new DOMParser().parseFromString(html, "text/html");
  const read = async (path) => {
    const answer = await fetch(path, { cache: "no-store" });
    if (!answer.ok) throw new Error(String(answer.status));
    return parsed(await answer.text());
  };

  // A node that stays keeps its scroll position, whether it is opened, and the focus.
  function exchange(old, fresh) {
    if (old.hasAttribute("data-kept")) return;
    for (const { name } of [...old.attributes])
      if (name !== "open" && !fresh.hasAttribute(name)) old.removeAttribute(name);
    for (const { name, value } of fresh.attributes)
      if (name !== "open" && old.getAttribute(name) !== value) old.setAttribute(name, value);
    let at = old.firstChild;
    for (const child of [...fresh.childNodes]) {
      const wanted = key(child);
      let match = at;
      while (match && key(match) !== wanted) match = match.nextSibling;
      if (!match) {
        old.insertBefore(document.importNode(child, true), at);
        continue;
      }
      remove(at, match);
      at = match.nextSibling;
      if (match.nodeType === Node.ELEMENT_NODE) exchange(match, child);
      else if (match.data !== child.data) match.data = child.data;
    }
    remove(at, null);
  }
  // From one node to another one behind it, which stays.
  function remove(node, end) {
    while (node !== end) {
      const next = node.nextSibling;
      node.remove();
      node = next;
    }
  }
  function key(node) {
    if (node.nodeType !== Node.ELEMENT_NODE) return node.nodeName;
    const titled = ["DETAILS", "FIGURE", "ARTICLE"].includes(node.nodeName);
    const title = titled ? node.querySelector("summary, figcaption, h3")?.textContent : "";
    return `${node.nodeName} ${node.id} ${title}`;
  }

  // Said to who listens when a stage begins or the run ends, and not with every figure.
  function say() {
    const said = byId("live").dataset.said;
    if (byId("said").textContent !== said) byId("said").textContent = said;
  }
  async function report() {
    const fresh = await read(".");
    if (!byId("trees-data") !== !fresh.getElementById("trees-data")) {
      location.reload();
      return;
    }
    const before = byId("trees-data")?.textContent;
    exchange(document.body, fresh.body);
    if (byId("trees-data")?.textContent !== before) document.dispatchEvent(new Event("trees"));
  }

  let timer = 0;
  async function look() {
    clearTimeout(timer);
    let wait = EVERY;
    try {
      const fresh = (await read("live")).getElementById("live");
      if (fresh.dataset.report === byId("live").dataset.report) exchange(byId("live"), fresh);
      else await report();
      byId("lost").hidden = true;
    } catch {
      byId("lost").hidden = false;
      wait = LATER;
    }
    say();
    clearTimeout(timer);
    if (!document.hidden) timer = setTimeout(look, wait);
  }
  document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : look()));
  say();
  look();
})();
