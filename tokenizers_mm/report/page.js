// Click a picture to see it large; the arrow keys flip through its figure in place, which shows differences best.
const box = document.querySelector("dialog"), [large, label] = [box.querySelector("img"), box.querySelector("b")];
let row = [], at = 0;
const show = i => { at = (i + row.length) % row.length; const p = row[at]; large.src = p.src; large.alt = p.alt;
  large.className = p.className; label.textContent = p.alt; };
const open = p => {
  row = [...p.closest(".grid, .gallery, .strip").querySelectorAll("[data-zoom]")];
  show(row.indexOf(p));
  box.showModal();
};
document.querySelectorAll("[data-zoom]").forEach(p => { p.onclick = () => open(p);
  p.onkeydown = e => { if (e.key === "Enter") open(p); }; });
large.onclick = () => box.close();
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(d => { d.open = true; }));
box.onkeydown = e => { const d = {ArrowRight: 1, ArrowLeft: -1}[e.key]; if (d) { e.preventDefault(); show(at + d); } };
