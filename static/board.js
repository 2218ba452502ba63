// Pages that change by themselves: board, first day, screen of the waiting room; after minris.js.
"use strict";

(function () {
  const board = document.getElementById("board");
  const offline = document.getElementById("offline");
  if (!board || !window.EventSource) return;

  const news = document.getElementById("news");
  const points = window.matchMedia("(hover: hover)");  // a finger leaves its hover behind
  let latest = null;  // what the server has last sent, as long as it is not all shown
  let mark = board.dataset.mark || "";
  let waiting = false;
  let again = false;
  let mine = "";  // the row that one has just acted upon: it changes even under the pointer

  // Fetch the board and show it if it has changed.
  async function refresh() {
    if (waiting) { again = true; return; }
    waiting = true;
    try {
      const path = board.dataset.part + "&have=" + mark;
      const answer = await fetch(path, { credentials: "same-origin", redirect: "manual" });
      if (answer.type === "opaqueredirect" || answer.status === 401) { location.reload(); return; }
      if ((answer.headers.get("X-Alarm") || "") !== document.body.dataset.alarm) { location.reload(); return; }
      if (!answer.ok) throw new Error(answer.status);
      offline.hidden = true;
      if (answer.status === 204) return;
      latest = await answer.text();
      mark = answer.headers.get("X-Mark") || "";
      put();
    } catch (error) {
      offline.hidden = false;
    } finally {
      waiting = false;
      if (again) { again = false; refresh(); }
    }
  }

  // Show what is new. While somebody points at the list, or has the focus in it, nothing moves and
  // no button becomes another one: the next click would hit another patient, or do something else.
  function put() {
    if (latest === null) return;
    const fresh = document.createElement("div");
    fresh.innerHTML = latest;
    const held = (points.matches && board.matches(":hover") || board.matches(":focus-within"))
      && board.querySelector("button");
    const left = held ? patch(fresh) : 0;
    if (!held) {
      const order = outline(board);
      board.innerHTML = latest;
      if (order !== outline(board)) settle();
    }
    if (!left) latest = null;
    if (!news) return;
    news.hidden = !left;
    news.textContent = news.dataset.words.replace("{count}", left);
  }

  const rowsOf = (part) => Array.from(part.querySelectorAll("[data-step]"));
  const outline = (part) => Array.from(part.querySelectorAll("h2, [data-step]"),
    (one) => one.dataset.step || one.textContent).join("\n");

  // Write into the rows what moves nothing; return the number of changes that have to wait.
  function patch(fresh) {
    const olds = new Map(rowsOf(board).map((row) => [row.dataset.step, row]));
    const rows = rowsOf(fresh);
    const own = rows.find((row) => row.dataset.step === mine);
    if (own && olds.has(mine)) {
      olds.get(mine).innerHTML = own.innerHTML;
      olds.get(mine).dataset.state = own.dataset.state;
    }
    if (outline(board) !== outline(fresh)) {
      const same = rows.filter((row) => {
        const old = olds.get(row.dataset.step);
        return old && old.dataset.state === row.dataset.state;
      });
      return Math.max(1, Math.max(rows.length, olds.size) - same.length);
    }
    const held = Array.from(board.querySelectorAll("[data-step]:hover, [data-step]:focus-within"));
    const places = () => held.flatMap((row) => Array.from(row.querySelectorAll("button"),
      (one) => { const box = one.getBoundingClientRect(); return [box.left, box.top]; })).join();
    const place = places();
    let left = 0;
    for (const row of rows) {
      const old = olds.get(row.dataset.step);
      const closed = (html) => html.replaceAll(' open=""', "").trim();  // a menu may be open
      if (closed(old.outerHTML) === closed(row.outerHTML)) continue;
      const actions = (one) => closed(one.querySelector(".actions").innerHTML);
      if (held.includes(old) && actions(old) !== actions(row)) { left += 1; continue; }
      const before = old.innerHTML;
      if (held.includes(old)) {
        Array.from(old.cells).forEach((cell, number) => {
          if (cell.innerHTML !== row.cells[number].innerHTML) cell.innerHTML = row.cells[number].innerHTML;
        });
      } else {
        old.innerHTML = row.innerHTML;
      }
      if (places() !== place) {  // it would move what is pointed at
        old.innerHTML = before;
        left += 1;
      } else {
        old.dataset.state = row.dataset.state;
      }
    }
    const summary = (part) => part.querySelector(".summary");
    if (!left && summary(board) && summary(fresh)) summary(board).innerHTML = summary(fresh).innerHTML;
    return left;
  }

  // A finger does not hover: what has just moved takes no tap for a moment.
  let settling = 0;
  function settle() {
    board.classList.add("moved");
    clearTimeout(settling);
    settling = setTimeout(() => board.classList.remove("moved"), 700);
  }

  // Act where one stands: the row changes in its place, and a toast says who and what, with undo.
  // What the server would rather ask about (409) is asked on a page of its own.
  const told = document.getElementById("told");
  let forget = 0;
  async function act(form, button) {
    mine = (button.getAttribute("formaction") || form.getAttribute("action")).replace(/^.*step\/|[?].*$/g, "");
    const body = new URLSearchParams(new FormData(form));
    body.set(button.name, button.value);
    const how = { method: "POST", body, credentials: "same-origin", redirect: "manual" };
    const answer = await fetch(button.getAttribute("formaction") ? button.formAction : form.action, how);
    if (answer.type !== "opaqueredirect") throw new Error(answer.status);
    const words = await fetch(root + "?part=told", { credentials: "same-origin", redirect: "manual" });
    if (!words.ok) { location.reload(); return; }
    told.innerHTML = await words.text();
    told.className = "toast";
    clearTimeout(forget);
    forget = setTimeout(() => { if (!told.matches(":hover, :focus-within")) told.textContent = ""; }, 10000);
    for (const menu of board.querySelectorAll(".more[open]")) menu.open = false;
    await refresh();
    put();
    setTimeout(() => { mine = ""; }, 1000);
  }
  document.addEventListener("submit", (event) => {
    const button = event.submitter;
    if (event.defaultPrevented || !button || !(event.target.id === "act" || told.contains(button))) return;
    event.preventDefault();
    act(event.target, button).catch(() => {
      const value = document.createElement("input");
      Object.assign(value, { type: "hidden", name: button.name, value: button.value });
      event.target.append(value);
      event.target.action = button.getAttribute("formaction") ? button.formAction : event.target.action;
      event.target.submit();
    });
  });

  const later = () => setTimeout(put, 0);  // once the browser knows where pointer and focus are
  // Whoever presses the badge has left the list.
  for (const event of ["pointerleave", "pointerover", "focusout"]) board.addEventListener(event, later);

  // A browser opens few connections to one server: a hidden page closes its own.
  let stream = null;
  function listen() {
    if (document.hidden) {
      if (stream) stream.close();
      stream = null;
    } else if (!stream) {
      stream = new EventSource(root + "events");
      stream.onmessage = refresh;
      stream.onopen = () => { offline.hidden = true; };
      stream.onerror = () => { offline.hidden = false; };
    }
  }
  document.addEventListener("visibilitychange", listen);
  listen();
  // "Since … min" changes even if nothing happens.
  setInterval(refresh, 30000);
})();

// The first day: a rejected caller fills the form; the time zone is that of the browser.
document.addEventListener("click", (event) => {
  const fill = event.target.closest("[data-fill]");
  if (!fill) return;
  event.preventDefault();
  for (const [name, value] of new URLSearchParams(fill.dataset.fill)) field(name).value = value;
  const folded = field("modality").closest("details");
  if (folded) folded.open = true;
  field("modality").focus();
});
const zone = document.querySelector(".steps #clinic_timezone");
if (zone && !zone.value) zone.value = Intl.DateTimeFormat().resolvedOptions().timeZone;

// The screen of the waiting room: a tone for whoever is newly called, once it is switched on.
const sound = document.getElementById("sound");
if (sound) {
  const called = () => Array.from(document.querySelectorAll("[data-called]"), (one) => one.dataset.called).sort().pop() || "";
  let tones = null;
  let last = called();
  sound.hidden = false;
  sound.addEventListener("click", () => {
    if (tones) tones.close();
    tones = tones ? null : new AudioContext();
    sound.setAttribute("aria-pressed", String(Boolean(tones)));
  });
  new MutationObserver(() => {
    const newest = called();
    if (tones && newest > last) {
      const tone = tones.createOscillator();
      tone.connect(tones.destination);
      tone.start();
      tone.stop(tones.currentTime + 0.4);
    }
    last = newest;
  }).observe(document.getElementById("board"), { childList: true, subtree: true });
}
