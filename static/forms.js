// Help while forms are filled in and exams are moved; after minris.js.
"use strict";

// Registration: show known patients while a name, ID, phone or birth date is typed.
(function () {
  const found = field("found");
  if (!found) return;

  // An identity number contains birth date and sex; a birth date is read back with the age.
  function fill(element) {
    const told = element.firstElementChild;
    for (const button of element.querySelectorAll("button")) button.tabIndex = -1;  // arrows lead there
    const echo = element.querySelector("[data-echo]");
    if (echo) field("birth_date-help").textContent = echo.textContent;
    if (!told || !told.dataset.born) return;
    if (!field("birth_date").value) field("birth_date").value = told.dataset.born;
    if (!field("sex").value) field("sex").value = told.dataset.sex;
  }

  const ask = asker(found, fill);
  const names = ["q", "family_name", "given_name", "chinese_name", "patient_id", "identity", "phone", "birth_date"];
  for (const name of names) {
    const input = field(name);
    if (input) input.addEventListener("input", () => {
      const family = name === "given_name" ? field("family_name").value + " " : "";
      ask({ q: family + input.value, field: name }, 200);
    });
  }
  found.closest("form").addEventListener("keydown", (event) => {
    const known = Array.from(found.querySelectorAll("button"));
    const typing = names.includes(event.target.id);
    const step = { ArrowDown: 1, ArrowUp: -1, Enter: event.target.id === "q" ? 1 : 0 }[event.key];
    if (!step || !typing && !found.contains(event.target)) return;
    event.preventDefault();
    const place = known.indexOf(document.activeElement) + step;
    if (known.length) (known[place] || field("q")).focus();
  });
  // Back from the exam that was just registered: not to an empty form, which would register twice.
  const made = sessionStorage.getItem("registered");
  sessionStorage.removeItem("registered");
  if (made && performance.getEntriesByType("navigation")[0].type === "back_forward") location.replace(made);
})();
if (location.search === "?registered=1") sessionStorage.setItem("registered", location.pathname);

// Exam form: the exam sets its device; overlapping exams and free times of the device are shown.
(function () {
  const slots = field("slots");
  if (!slots || !field("time")) return;
  const names = ["procedure", "device", "modality", "date", "time"];
  const step = document.querySelector("input[name=step]");
  const device = field("device");
  let own = !device.value;  // no person has chosen the device

  function look(wait) {
    const query = Object.fromEntries(names.map((name) => [name, field(name) ? field(name).value : ""]));
    if (own) query.device = "";
    if (step) query.step = step.value;
    ask(query, wait);
  }
  const ask = asker(slots, (element) => {
    if (own) device.value = element.firstElementChild.dataset.device;
  });
  slots.addEventListener("change", (event) => {
    [field("date").value, field("time").value] = event.target.value.split(" ");
    for (const warning of slots.querySelectorAll(".warning")) warning.remove();
  });
  for (const name of names) {
    if (field(name)) field(name).addEventListener("input", () => {
      if (name === "device") own = !device.value;
      look(200);
    });
  }
})();

// Calendar: an exam is drawn to a free time; the server says who and what, with undo.
(function () {
  const form = field("move");
  if (!form) return;
  let drawn = null;
  const target = (event) => drawn && event.target.closest("[data-to]");
  document.addEventListener("dragstart", (event) => { drawn = event.target.closest("[draggable=true]"); });
  document.addEventListener("dragover", (event) => { if (target(event)) event.preventDefault(); });
  document.addEventListener("drop", async (event) => {
    const free = target(event);
    if (!free) return;
    event.preventDefault();
    form.action = `${drawn.href}/move?step_state=${drawn.dataset.mark}`;
    form.elements.to.value = free.dataset.to;
    const how = { method: "POST", body: new URLSearchParams(new FormData(form)), redirect: "manual" };
    const answer = await fetch(form.action, how).catch(() => null);
    if (answer && answer.type === "opaqueredirect") location.reload();  // where one was
    else form.submit();
  });
})();
