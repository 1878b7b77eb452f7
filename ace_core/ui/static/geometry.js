const root = element.querySelector('.ace-geo');
const map = JSON.parse(props.value);
const slot = (name) => root.querySelector(`[data-slot="${name}"]`);
const [plot, slider, said] = [slot('plot'), root.querySelector('input[type=range]'), slot('said')];
const [low, high] = [map.mean_harmless[0], map.mean_harmful[0]];
const gap = high - low;
const coordinate = (x) => (x - low) / gap;
const along = (c) => low + c * gap;
const zero = coordinate(map.origin[0]);
const points = ['harmless', 'harmful'].flatMap((kind) => map[kind].map(([x, y]) => ({ kind, x, y })));
// Wide enough for every method at every coefficient, so that the axes never move.
const spread = points.map((point) => coordinate(point.x));
const [left, right] = [
    along(Math.min(...spread, zero, 0) - 1.1),
    along(Math.max(...spread, zero, 1) + 2.1),
];
const heights = [...points.map((point) => point.y), map.origin[1]];
const room = 0.07 * (Math.max(...heights) - Math.min(...heights) || gap);
const [bottom, top] = [Math.min(...heights) - 2.4 * room, Math.max(...heights) + room];
const decimals = Math.min(6, Math.max(0, 2 - Math.floor(Math.log10(gap))));
const [first] = map.harmful;
const state = { method: 'baseline', reference: 'harmless', alpha: 0, probe: { x: first[0], y: first[1] } };

function number(value, digits) {
    const text = value.toFixed(digits);
    return Number(text) === 0 ? text.replace('-', '') : text.replace('-', '−');
}
const units = (value) => number(value, decimals);
const gaps = (value) => number(value, 2);

function chosen() {
    const edit = map.edits.find(
        ({ method, reference }) => method === state.method && (!reference || reference === state.reference),
    );
    return { ...edit, add: edit.base + edit.slope * state.alpha };
}

// The one affine formula; what is orthogonal to u stays.
const moved = (edit, x) => x + (edit.add - edit.remove * x);

// ---- drawing

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
    parts.points = points.map(({ kind }, index) =>
        draw(cloud, 'path', { d: shapes[kind], class: 'ace-geo-point', 'data-class': kind, 'data-index': index }));
    cloud.addEventListener('pointerover', (event) => explain(event.target));
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
    const [before, after] = [point.x, Number(node.dataset.x)].map((x) => gaps(coordinate(x)));
    title.textContent = `a ${point.kind} prompt: coordinate ${before} before, ${after} after`;
}

// ---- words

const side = (c) => (c > 0.5 ? 'harmful' : 'harmless');

function where(c) {
    const names = { '0.00': 'the harmless mean', '0.50': 'right on the decision line', '1.00': 'the harmful mean' };
    return names[gaps(c)] || `on the ${side(c)} side of the decision line`;
}

function sentence(edit) {
    if (edit.remove === 1) {
        const c = coordinate(edit.add);
        const level = Math.abs(c - zero) < 0.005 ? `level with the origin, ${where(c)}` : where(c);
        return `Every prompt now sits at coordinate ${gaps(c)}, ${level}.`;
    }
    const over = (kind) => map[kind].filter(([x]) => coordinate(moved(edit, x)) > 0.5).length;
    const [some, others] = ['harmful', 'harmless'].map((kind) => `${over(kind)} of ${map[kind].length} ${kind}`);
    const counts = `${some} and ${others} prompts lie beyond the decision line.`;
    const shift = edit.add / gap;
    if (Math.abs(shift) < 0.005) return `Nothing has moved: ${counts}`;
    const way = shift > 0 ? 'harmful' : 'harmless';
    return `Both clouds slid ${gaps(Math.abs(shift))} class gaps to the ${way} side: ${counts}`;
}

function letter(parent, key, text) {
    const node = document.createElement('b');
    node.dataset.letter = key;
    node.textContent = text;
    parent.append(node);
}

// "s = μ⁻·u + α·g = −23.8 + 0.50·31.3", each letter and its number marked alike.
function putBack(edit) {
    const line = slot('put-back');
    const sum = (constant, alpha, distance) => {
        if (edit.constant) letter(line, edit.constant === 'μ⁻·u' ? 'low' : 'constant', constant);
        if (edit.constant && edit.scaled) line.append(' + ');
        if (!edit.scaled) return;
        letter(line, 'coefficient', alpha);
        line.append('·');
        letter(line, 'gap', distance);
    };
    line.replaceChildren();
    letter(line, 'add', 's');
    line.append(' = ');
    sum(edit.constant, 'α', 'g');
    if (edit.constant === '0' && !edit.scaled) return;
    line.append(' = ');
    sum(units(edit.base), gaps(state.alpha), units(gap));
}

function family(edit) {
    const c = coordinate(edit.add);
    const from = { harmless: c, origin: c - zero, pooled: c - 0.5, harmful: c - 1 };
    const member = edit.remove === 1;
    const fixed = { affine_ablation: 'harmless', ablation: 'origin' };
    const current = state.method === 'ace' ? state.reference : fixed[state.method];
    for (const row of root.querySelectorAll('.ace-geo-family tbody tr')) {
        const cell = row.querySelector('[data-family]');
        cell.textContent = member ? gaps(from[row.dataset.reference]) : '–';
        row.toggleAttribute('data-current', row.dataset.reference === current);
    }
    let note = 'All four are one edit, and only the counting differs: ACE from the origin at 0 is directional ablation.';
    if (!member) note = 'Not in this family: the old component stays, so prompts stay as far apart as they were.';
    else if (Math.abs(from.origin) < 0.005) note = 'Counted from the origin this is 0: exactly directional ablation.';
    else if (Math.abs(from.harmless) < 0.005) note = 'Counted from the harmless mean this is 0: exactly affine ablation.';
    slot('family').textContent = note;
}

let saying = 0;
function write(edit) {
    const numbers = {
        remove: gaps(edit.remove).replace('.00', ''),
        add: units(edit.add),
        coefficient: edit.scaled ? gaps(state.alpha) : '–',
        low: units(low),
        gap: units(gap),
    };
    for (const node of root.querySelectorAll('[data-number]')) node.textContent = numbers[node.dataset.number];
    slot('words').textContent = edit.words;
    slot('alpha').textContent = edit.scaled ? gaps(state.alpha) : '–';
    slot('alpha-hint').textContent = edit.scaled
        ? 'How far to go: 1 is one class gap, the distance between the two means.'
        : 'Only activation addition and ACE have a coefficient.';
    putBack(edit);
    family(edit);
    const [before, after] = [coordinate(state.probe.x), coordinate(moved(edit, state.probe.x))];
    const text = `coordinate ${gaps(before)} before, ${gaps(after)} after`;
    slot('probe').textContent = `Your point: ${text}; height ${units(state.probe.y)}, unchanged.`;
    parts?.handle.setAttribute('aria-valuenow', before.toFixed(2));
    parts?.handle.setAttribute('aria-valuetext', `${text}, height ${units(state.probe.y)}`);
    // A screen reader gets the sentence once a movement has come to rest.
    clearTimeout(saying);
    saying = setTimeout(() => {
        const spoken = sentence(edit);
        if (said.textContent !== spoken) said.textContent = spoken;
    }, 120);
}

function update(glide = false) {
    const edit = chosen();
    root.dataset.method = state.method;
    root.dataset.reference = state.reference;
    Object.assign(root.dataset, { remove: edit.remove, add: edit.add, alpha: state.alpha });
    slider.disabled = !edit.scaled;
    for (const radio of root.querySelectorAll('[data-group=reference] input')) radio.disabled = state.method !== 'ace';
    if (parts) {
        root.classList.toggle('ace-geo-gliding', glide);
        points.forEach((point, index) => place(parts.points[index], moved(edit, point.x), point.y));
        place(parts.handle, state.probe.x, state.probe.y);
        place(parts.after, moved(edit, state.probe.x), state.probe.y);
        const [from, to, height] = [px(state.probe.x), px(moved(edit, state.probe.x)), py(state.probe.y)];
        const ends = { x1: from, x2: to, y1: height, y2: height };
        for (const [key, value] of Object.entries(ends)) parts.link.setAttribute(key, value);
        for (const key of ['x1', 'x2']) parts.target.setAttribute(key, px(edit.add));
        parts.target.toggleAttribute('hidden', edit.remove !== 1);
        lane(edit);
    }
    write(edit);
}

// ---- your point

function carry(x, y) {
    state.probe.x = Math.min(right, Math.max(left, x));
    state.probe.y = Math.min(top, Math.max(bottom, y));
    update();
}

function listen(handle) {
    let grip = null;
    handle.addEventListener('pointerdown', (event) => {
        handle.setPointerCapture(event.pointerId);
        grip = { x: event.clientX - px(state.probe.x), y: event.clientY - py(state.probe.y) };
    });
    // A drag that leaves the handle's own box would scroll the page, touch-action or not.
    handle.addEventListener('touchstart', (event) => event.preventDefault(), { passive: false });
    handle.addEventListener('pointermove', (event) => {
        if (!grip) return;
        const [sx, sy] = [event.clientX - grip.x, event.clientY - grip.y];
        const width = size.width - margin.left - margin.right;
        const height = size.height - margin.top - margin.bottom;
        carry(left + ((sx - margin.left) / width) * (right - left), top - ((sy - margin.top) / height) * (top - bottom));
    });
    for (const end of ['pointerup', 'pointercancel']) handle.addEventListener(end, () => { grip = null; });
    handle.addEventListener('keydown', (event) => {
        const step = event.shiftKey ? 5 : 1;
        const [across, up] = [0.05 * gap * step, 0.02 * (top - bottom) * step];
        const { x, y } = state.probe;
        const keys = {
            ArrowLeft: [x - across, y],
            ArrowRight: [x + across, y],
            ArrowUp: [x, y + up],
            ArrowDown: [x, y - up],
            Home: [low, y],
            End: [high, y],
        };
        if (!keys[event.key]) return;
        event.preventDefault();
        carry(...keys[event.key]);
    });
}

// ---- controls

root.addEventListener('change', ({ target }) => {
    if (target.type !== 'radio') return;
    state[target.closest('[data-group]').dataset.group] = target.value;
    update(true);
});
slider.addEventListener('input', () => {
    state.alpha = Number(slider.value);
    update();
});
function fit() {
    const width = root.clientWidth;
    if (!width) return;
    root.dataset.room = width <= 640 ? 'narrow' : width < 800 ? '' : width < 1000 ? 'wide' : 'wide roomy';
}
fit();
new ResizeObserver(fit).observe(root);
new ResizeObserver(() => {
    const [width, height] = [plot.clientWidth, plot.clientHeight];
    if (!width || (width === size.width && height === size.height)) return;
    size = { width, height };
    build();
    update();
}).observe(plot);
update();
