// Folding, search and printing; without scripts the page reads the same, and sections open by their headings.
(function () {
  "use strict";
  var parts = Array.prototype.slice.call(document.querySelectorAll("main > section"));
  var tools = document.getElementById("tools");
  var box = document.getElementById("search");
  var count = document.getElementById("found");
  var all = document.getElementById("unfold");
  var texts = parts.map(function (part) { return part.textContent.toLowerCase(); });

  function folds(part) {
    return Array.prototype.slice.call(part.querySelectorAll("details"));
  }

  function reveal(target) {
    for (var at = target; at; at = at.parentElement) {
      if (at.tagName === "DETAILS") { at.open = true; }
    }
    if (target && target.tagName === "SECTION") {
      var own = target.querySelector(":scope > details");
      if (own) { own.open = true; }
    }
  }

  function follow() {
    var target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target) { reveal(target); target.scrollIntoView(); }
  }

  function search() {
    var words = box.value.toLowerCase().split(/\s+/).filter(Boolean), n = 0;
    parts.forEach(function (part, i) {
      var hit = words.every(function (word) { return texts[i].indexOf(word) >= 0; });
      part.hidden = !hit;
      document.querySelectorAll('nav a[href="#' + part.id + '"]').forEach(function (link) {
        link.parentElement.hidden = !hit;
      });
      if (hit && words.length) {
        n += 1;
        folds(part).forEach(function (fold) {
          var text = fold.textContent.toLowerCase();
          if (words.some(function (word) { return text.indexOf(word) >= 0; })) { fold.open = true; }
        });
      }
    });
    count.textContent = words.length ? n + (n === 1 ? " section" : " sections") : "";
  }

  tools.hidden = false;
  box.addEventListener("input", search);
  box.addEventListener("keydown", function (event) {
    if (event.key === "Escape") { box.value = ""; search(); }
  });
  all.addEventListener("click", function () {
    var open = all.getAttribute("aria-pressed") !== "true";
    all.setAttribute("aria-pressed", String(open));
    all.textContent = open ? "Fold all" : "Unfold all";
    parts.forEach(function (part) { folds(part).forEach(function (fold) { fold.open = open; }); });
  });
  window.addEventListener("beforeprint", function () {
    parts.forEach(function (part) {
      var own = part.querySelector(":scope > details");
      if (own) { own.open = true; }
    });
  });
  window.addEventListener("hashchange", follow);
  follow();
})();
