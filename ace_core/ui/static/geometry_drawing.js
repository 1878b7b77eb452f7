// Continues geometry_scene.js.
function draw(parent, tag, attributes = {}, text = null) {
    const node = document.createElementNS('http://www.w3.org/2000/svg', tag);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== null) node.textContent = text;
    parent.append(node);
    return node;
}

const RING = 'M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0Z';
const WEDGE = 'M-4.6,-3.8H4.6L0,4.6Z';
const shapes = { harmless: RING, harmful: WEDGE };
const margin = { left: 38, right: 24, top: 40, bottom: 92 };
let size = { width: 0, height: 0 };
let parts = null;
const narrow = () => size.width < 520;
const px = (x) => margin.left + ((x - left) / (right - left)) * (size.width - margin.left - margin.right);
const py = (y) => margin.top + ((top - y) / (top - bottom)) * (size.height - margin.top - margin.bottom);

function place(node, x, y) {
    node.style.transform = `translate(${px(x).toFixed(2)}px, ${py(y).toFixed(2)}px)`;
    node.dataset.x = String(x);
    node.dataset.y = String(y);
}

function ticks(svg) {
    const floor = size.height - margin.bottom;
    const lane = floor + 40;
    for (let c = Math.ceil(coordinate(left)); c <= coordinate(right); c += 1) {
        const x = px(along(c));
        draw(svg, 'line', { class: 'ace-geo-grid', x1: x, x2: x, y1: margin.top, y2: floor });
        draw(svg, 'text', { class: 'ace-geo-tick', x, y: lane + 14 }, gaps(c).replace('.00', ''));
        draw(svg, 'text', { class: 'ace-geo-tick ace-geo-small', x, y: lane + 28 }, units(along(c)));
    }
    const title = narrow() ? 'coordinate, and v·u below' : 'refusal coordinate c; below, v·u in units of activation';
    draw(svg, 'text', { class: 'ace-geo-tick', x: (margin.left + size.width - margin.right) / 2, y: lane + 45 }, title);
    const power = 10 ** Math.floor(Math.log10((top - bottom) / 2));
    const step = (top - bottom) / power > 8 ? 2 * power : power;
    for (let y = Math.ceil(bottom / step) * step; y <= top; y += step) {
        const text = number(y, Math.max(0, -Math.floor(Math.log10(power))));
        draw(svg, 'text', { class: 'ace-geo-tick ace-geo-side', x: margin.left - 5, y: py(y) + 4 }, text);
    }
}

function landmarks(svg) {
    const floor = size.height - margin.bottom;
    const vertical = (x, kind) =>
        draw(svg, 'line', { class: `ace-geo-${kind}`, x1: px(x), x2: px(x), y1: margin.top, y2: floor });
    const title = (x, y, anchor, text) => draw(svg, 'text', { class: 'ace-geo-note', x, y, 'text-anchor': anchor }, text);
    vertical(low, 'low');
    vertical(high, 'high');
    vertical(along(0.5), 'decision');
    title(px(low) + 2, 32, 'end', 'harmless mean');
    title(px(high) - 2, 32, 'start', 'harmful mean');
    title(px(along(0.5)), 14, 'middle', 'decision line, halfway');
    const words = narrow() ? 'up: strongest other direction' : 'up: strongest direction of the rest, units of activation';
    title(size.width - margin.right, floor - 7, 'end', words);
}

function build() {
    const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
    svg.setAttribute('width', size.width);
    svg.setAttribute('height', size.height);
    svg.setAttribute('role', 'group');
    svg.setAttribute('aria-label', 'Map of the prompts; the sentence below says where they are');
    ticks(svg);
    landmarks(svg);
    parts = { svg, ghosts: draw(svg, 'g', { class: 'ace-geo-ghosts' }) };
    for (const point of points) {
        place(draw(parts.ghosts, 'path', { d: shapes[point.kind], 'data-class': point.kind }), point.x, point.y);
    }
    parts.target = draw(svg, 'line', { class: 'ace-geo-target', y1: margin.top, y2: size.height - margin.bottom });
    const cloud = draw(svg, 'g', { class: 'ace-geo-cloud' });
    parts.cloud = cloud;
    parts.points = points.map(({ kind }, index) =>
        draw(cloud, 'path', { d: shapes[kind], class: 'ace-geo-point', 'data-class': kind, 'data-index': index }));
    cloud.addEventListener('pointerover', (event) => explain(event.target));
    if (putting) drawTokens();
    for (const kind of ['harmless', 'harmful']) {
        const mean = draw(svg, 'g', { class: 'ace-geo-mean', 'data-class': kind });
        draw(mean, 'path', { d: shapes[kind], transform: 'scale(2)' });
        draw(mean, 'title', {}, `mean of the ${kind} prompts`);
        place(mean, ...map[`mean_${kind}`]);
    }
    const origin = draw(svg, 'g', { class: 'ace-geo-origin' });
    draw(origin, 'path', { d: 'M-7,0H7M0,-7V7' });
    draw(origin, 'text', { x: 9, y: -6, class: 'ace-geo-note' }, 'origin');
    draw(origin, 'title', {}, 'the list of all zeros');
    place(origin, ...map.origin);
    parts.lane = draw(svg, 'g', { class: 'ace-geo-lane' });
    parts.link = draw(svg, 'line', { class: 'ace-geo-link' });
    parts.after = draw(svg, 'circle', { class: 'ace-geo-after ace-geo-point', r: 6.5 });
    parts.handle = draw(svg, 'g', { class: 'ace-geo-handle', tabindex: 0, role: 'slider' });
    parts.handle.setAttribute('aria-label', 'Your point before the edit; left and right change its refusal coordinate');
    parts.handle.setAttribute('aria-valuemin', coordinate(left).toFixed(2));
    parts.handle.setAttribute('aria-valuemax', coordinate(right).toFixed(2));
    draw(parts.handle, 'circle', { class: 'ace-geo-reach', r: 22 });
    draw(parts.handle, 'circle', { class: 'ace-geo-ring', r: 10 });
    draw(parts.handle, 'title', {}, 'your point: drag it');
    listen(parts.handle);
    const focused = plot.contains(document.activeElement);
    plot.replaceChildren(svg);
    if (focused) parts.handle.focus({ preventScroll: true });
}

// What is put back is the same for every prompt, so the coefficient moves one group and not every mark in it.
function slide(edit) {
    if (parts.removed !== edit.remove) {
        parts.removed = edit.remove;
        points.forEach((point, index) => place(parts.points[index], point.x - edit.remove * point.x, point.y));
    }
    if (tokens.length) slideTokens(edit);
    parts.cloud.style.transform = `translate(${(px(edit.add) - px(0)).toFixed(2)}px, 0px)`;
    parts.cloud.dataset.add = String(edit.add);
}

// The class gap, and how far the coefficient goes, as lengths below the map.
function lane(edit) {
    const y = size.height - margin.bottom + 12;
    const arrow = (from, to, at, kind, text) => {
        const [a, b] = [px(from), px(to)];
        if (Math.abs(b - a) < 1) return;
        const group = draw(parts.lane, 'g', { class: `ace-geo-length ace-geo-length-${kind}` });
        const tip = Math.sign(b - a) * Math.min(6, Math.abs(b - a));
        const bars = `M${a},${at - 4}v8M${b},${at - 4}v8`;
        const head = kind === 'gap' ? bars : `M${b - tip},${at - 4}L${b},${at}L${b - tip},${at + 4}`;
        draw(group, 'path', { d: `M${a},${at}H${b}${head}` });
        draw(group, 'text', { x: Math.max(a, b) + 6, y: at + 4 }, text);
    };
    parts.lane.replaceChildren();
    arrow(low, high, y, 'gap', 'g');
    if (!edit.scaled) return;
    const from = edit.remove ? edit.base : low;
    arrow(from, from + edit.slope * state.alpha, y + 15, 'alpha', 'α·g');
}

function explain(node) {
    const point = points[Number(node.dataset.index)];
    if (!point) return;
    const title = node.querySelector('title') || draw(node, 'title');
    const [before, after] = [point.x, moved(chosen(), point.x)].map((x) => gaps(coordinate(x)));
    title.textContent = `a ${point.kind} prompt: coordinate ${before} before, ${after} after`;
}
