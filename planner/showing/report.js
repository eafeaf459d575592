// The page is complete without this: it shows a point's hint at once, and prints what is folded.
(() => {
  const tip = document.createElement("div");
  tip.id = "tip";
  tip.hidden = true;
  document.body.append(tip);
  const hintOf = (target) => {
    const mark = target instanceof SVGElement ? target : null;
    const title = mark && [...mark.children].find((child) => child.tagName === "title");
    return title || null;
  };
  document.addEventListener("pointerover", (event) => {
    const title = hintOf(event.target);
    tip.hidden = !title;
    if (!title) return;
    tip.textContent = title.textContent;
    const box = tip.getBoundingClientRect();
    const left = Math.min(event.clientX + 12, window.innerWidth - box.width - 8);
    const below = event.clientY + 14;
    const top = below + box.height > window.innerHeight ? event.clientY - box.height - 10 : below;
    tip.style.left = `${Math.max(left, 8)}px`;
    tip.style.top = `${top}px`;
  });
  document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
  window.addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details")) details.open = true;
  });
})();
