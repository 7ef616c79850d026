(() => {
  // Light or dark: the system's choice until the reader makes one.
  const root = document.documentElement, theme = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const kept = () => { try { return localStorage.getItem("mpq-theme"); } catch { return null; } };
  const isDark = () => (root.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  const label = () => {
    theme.textContent = isDark() ? "Light" : "Dark";
    theme.setAttribute("aria-label", `Switch to ${isDark() ? "light" : "dark"} colours`);
  };
  if (kept()) root.dataset.theme = kept();
  theme.hidden = false;
  theme.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("mpq-theme", root.dataset.theme); } catch { /* not remembered */ }
    label();
  });
  system.addEventListener("change", label);
  label();

  // Tables: sort by a column, filter by any text.
  const valueOf = (row, i) => {
    const cell = row.cells[i];
    return cell.dataset.v === undefined ? cell.textContent : +cell.dataset.v;
  };
  const compare = (a, b) => typeof a === "number" && typeof b === "number" ? a - b
    : String(a).localeCompare(String(b), undefined, { numeric: true });
  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0], rows = [...body.rows], heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, i) => head.querySelector("button").addEventListener("click", () => {
      const next = { ascending: "descending", descending: null }[head.getAttribute("aria-sort")];
      heads.forEach((h) => h.removeAttribute("aria-sort"));
      const order = next === undefined ? "ascending" : next;
      if (order) head.setAttribute("aria-sort", order);
      const sign = order === "descending" ? -1 : 1;
      const sorted = order ? [...rows].sort((a, b) => sign * compare(valueOf(a, i), valueOf(b, i))) : rows;
      body.append(...sorted);
    }));
    const name = table.id.slice("table-".length);
    const field = document.querySelector(`input[data-filter="${name}"]`);
    const count = field.closest(".tools").querySelector(".count");
    field.addEventListener("input", () => {
      const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
        shown += !row.hidden;
      }
      count.textContent = shown === rows.length ? `${shown} rows` : `${shown} of ${rows.length} rows`;
    });
  }

  // The strips over all sites say what the table's row says.
  for (const strips of document.querySelectorAll(".skyline")) {
    const cursors = [...strips.querySelectorAll(".cursor")];
    const readout = strips.parentElement.querySelector(".readout");
    const table = document.getElementById("table-sites"), rows = [...table.tBodies[0].rows];
    const heads = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
    const step = strips.querySelector("svg").viewBox.baseVal.width / rows.length;
    let place = -1;
    const show = (i) => {
      place = Math.max(0, Math.min(rows.length - 1, i));
      for (const cursor of cursors) {
        cursor.setAttribute("x", place * step);
        cursor.setAttribute("visibility", "visible");
      }
      rows.forEach((row, k) => row.classList.toggle("pointed", k === place));
      readout.textContent = [...rows[place].cells].map((cell, k) =>
        k < 2 ? cell.textContent : `${heads[k].toLowerCase()} ${cell.textContent}`).join(" · ");
    };
    const at = (event) => {
      const box = strips.getBoundingClientRect();
      show(Math.floor((event.clientX - box.left) / box.width * rows.length));
    };
    strips.addEventListener("pointermove", at);
    strips.addEventListener("pointerdown", at);
    strips.addEventListener("keydown", (event) => {
      const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!move) return;
      show(place + move);
      event.preventDefault();
    });
  }

  // The section that is read is marked in the navigation.
  const links = new Map([...document.querySelectorAll("nav a")].map((a) => [a.hash.slice(1), a]));
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      links.forEach((a) => a.removeAttribute("aria-current"));
      links.get(entry.target.id).setAttribute("aria-current", "true");
    }
  }, { rootMargin: "-60px 0px -75% 0px" });
  document.querySelectorAll("main > section").forEach((section) => seen.observe(section));
})();
