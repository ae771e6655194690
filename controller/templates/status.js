"use strict";
// The page is complete without this: it filters while one types, and refreshes.
const PERIOD = 5000;
const box = document.getElementById("filter");

function narrow() {
  const wanted = box.value.trim().toLowerCase();
  for (const row of document.querySelectorAll("tbody tr")) {
    row.hidden = !row.textContent.toLowerCase().includes(wanted);
  }
}

// Everything is fetched, so that what is typed next can show what the server left out.
async function refresh() {
  try {
    const answer = await fetch("./", { headers: { Accept: "text/html" }, cache: "no-store" });
    if (!answer.ok) throw new Error(await answer.text());
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const open = new Set([...document.querySelectorAll("details[open]")].map(place));
    document.getElementById("content").replaceWith(page.getElementById("content"));
    for (const details of document.querySelectorAll("details")) details.open = open.has(place(details));
    document.title = "Highwire";
    narrow();
  } catch (error) {
    document.title = "Highwire: no answer";
  }
}

function place(details) {
  return details.closest("tr").querySelector("th").textContent;
}

box.addEventListener("input", narrow);
setInterval(() => { if (!document.hidden) refresh(); }, PERIOD);
refresh();
