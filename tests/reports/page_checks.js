// What is wrong with how a page looks. Each function returns the first few culprits.

// Pieces of text with the boxes that they take up, but for what is hidden.
const texts = function* (root, not) {
  const walk = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const node = walk.currentNode, parent = node.parentElement;
    if (!node.data.trim() || parent.closest(not) || !parent.checkVisibility()) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    yield [node, [...range.getClientRects()]];
  }
};

// Text beyond the edges of the window, but for what can be scrolled.
const stickingOut = width => {
  const found = [];
  for (const [node, boxes] of texts(document.body, '.scroll, .bar, .skip, svg, style'))
    if (boxes.some(box => box.right > width + 1 || box.left < -1)) found.push(node.data);
  return found.slice(0, 5);
};

// Pieces of text within one block whose boxes have an area in common.
const overlapping = () => {
  const found = [];
  const blocks = '.head, .cell, .profile, .group, .row, .place, .hint, .contents, footer';
  for (const block of document.querySelectorAll(blocks)) {
    const all = [...texts(block, 'svg, .unseen')].flatMap(([node, boxes]) =>
      boxes.map(box => [node, box]));
    all.forEach(([one, a], i) => all.slice(i + 1).forEach(([other, b]) => {
      const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (one !== other && wide > 1.5 && high > 5) found.push([one.data, other.data]);
    }));
    if (found.length > 4) break;
  }
  return found;
};

// Elements that hide a part of the text in them.
const cut = () => [...document.querySelectorAll('body *:not(svg, svg *, .unseen)')]
  .filter(one => ['hidden', 'clip'].includes(getComputedStyle(one).overflowX)
    && one.scrollWidth > one.clientWidth + 1)
  .map(one => one.className).slice(0, 5);

// WCAG 2.2, relative luminance and contrast ratio of two opaque colours.
const numbers = colour => colour.match(/[\d.]+/g).map(Number);
const channel = c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
const luminance = colour => {
  const [r, g, b] = numbers(colour).map(channel);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const contrast = (one, other) => {
  const [light, dark] = [luminance(one), luminance(other)].sort((a, b) => b - a);
  return (light + 0.05) / (dark + 0.05);
};
const behind = element => {
  for (; element; element = element.parentElement) {
    const colour = getComputedStyle(element).backgroundColor;
    const [, , , alpha = 1] = numbers(colour);
    if (alpha === 1) return colour;
    if (alpha !== 0) throw new Error('a translucent background');
  }
  return 'rgb(255, 255, 255)';
};

// Text with less than 4.5 to 1.
const paleTexts = () => {
  const found = [];
  for (const [node] of texts(document.body, 'svg, style')) {
    const ratio = contrast(getComputedStyle(node.parentElement).color, behind(node.parentElement));
    if (!(ratio >= 4.5)) found.push([node.data, ratio]);
  }
  return found.slice(0, 5);
};

// Icons, nodes, arrows, ticks and bars with less than 3 to 1. What <use> shows is looked at where
// it is used, with the colours of the shape that it names.
const paleMarks = () => {
  const found = [];
  const paints = shape => ['fill', 'stroke'].map(what => getComputedStyle(shape)[what])
    .filter(colour => colour.startsWith('rgb(')); // not none, not see-through
  for (const one of document.querySelectorAll('svg:not(.symbols) :is(path, circle, use)')) {
    if (one.closest('.profile') || !one.checkVisibility()) continue;
    const icon = one.closest('.icon');
    const named = one.matches('use') ? document.querySelector(one.getAttribute('href')) : one;
    const shapes = named.matches('g') ? [...named.children] : [named];
    const colours = icon ? [getComputedStyle(icon).color] : shapes.flatMap(paints);
    const ratio = Math.max(...colours.map(colour => contrast(colour, behind(one.closest('svg').parentElement))));
    if (!(ratio >= 3)) found.push([one.outerHTML, ratio]);
  }
  return found.slice(0, 5);
};

const open = () => [...document.querySelectorAll('details')].slice(0, 30)
  .forEach(one => { one.open = true; });
