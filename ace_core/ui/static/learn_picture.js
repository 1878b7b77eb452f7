const root = element.querySelector('.ace-learn-picture');
const data = JSON.parse(props.value);
const slot = (name) => root.querySelector(`[data-slot="${name}"]`);
const [stage, said] = [slot('stage'), slot('said')];
const sliders = Object.fromEntries([...root.querySelectorAll('input[type=range]')].map((one) => [one.dataset.name, one]));
const slider = (name) => Number(sliders[name].value);
const method = () => root.querySelector('input[type=radio]:checked')?.value;
const RING = 'M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0Z';
const WEDGE = 'M-4.6,-3.8H4.6L0,4.6Z';
const shapes = { harmless: RING, harmful: WEDGE };
const HEIGHT = 260;
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

function number(value, digits = 2) {
    const text = value.toFixed(digits);
    return Number(text) === 0 ? text.replace('-', '') : text.replace('-', '−');
}

function draw(parent, tag, attributes = {}, text = null) {
    const node = document.createElementNS('http://www.w3.org/2000/svg', tag);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== null) node.textContent = text;
    parent.append(node);
    return node;
}

function canvas(words) {
    const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
    const attributes = { width: stage.clientWidth, height: HEIGHT, role: 'img', 'aria-label': words };
    for (const [key, value] of Object.entries(attributes)) svg.setAttribute(key, value);
    stage.replaceChildren(svg);
    return svg;
}

function line(svg, kind, x1, y1, x2, y2) {
    return draw(svg, 'line', { class: `ace-learn-${kind}`, x1, y1, x2, y2 });
}

function words(svg, x, y, text, anchor = 'middle') {
    return draw(svg, 'text', { x, y, 'text-anchor': anchor }, text);
}

// Keeps a label inside the picture.
function label(svg, x, y, text) {
    const node = words(svg, x, y, text);
    const half = node.getComputedTextLength() / 2 + 2;
    node.setAttribute('x', Math.min(stage.clientWidth - half, Math.max(half, x)));
}

function mark(parent, kind, x, y, c) {
    const node = draw(parent, 'path', { d: shapes[kind], 'data-class': kind, transform: `translate(${x.toFixed(1)},${y.toFixed(1)})` });
    if (c !== undefined) node.dataset.c = String(c);
    return node;
}

const scale = (from, to, a, b) => (value) => a + ((value - from) / (to - from)) * (b - a);
const both = (use) => ['harmless', 'harmful'].forEach(use);

// Lines at the two means and halfway, with their names above.
function classes(svg, x, top, bottom) {
    line(svg, 'low', x(0), top, x(0), bottom);
    line(svg, 'high', x(1), top, x(1), bottom);
    line(svg, 'decision', x(0.5), top, x(0.5), bottom);
    words(svg, x(0) + 2, top - 6, 'harmless mean', 'end');
    words(svg, x(1) - 2, top - 6, 'harmful mean', 'start');
}

// ---- 1. tokens of a prompt, shaded as after one block

function stream() {
    const block = slider('block');
    const values = data.coordinates[block];
    if (!stage.firstChild) {
        for (const token of data.tokens) {
            const span = document.createElement('span');
            span.className = 'ace-token';
            span.textContent = token;
            stage.append(span);
        }
    }
    [...stage.children].forEach((span, index) => {
        const c = values[index];
        span.style.setProperty('--strength', Math.min(1, Math.abs(c - 0.5) * 2).toFixed(2));
        span.dataset.side = c < 0.5 ? 'low' : 'high';
        span.dataset.c = String(c);
        span.title = `c = ${number(c)}`;
    });
    const end = values[values.length - 1];
    const side = end > 0.5 ? 'on the harmful side' : 'on the harmless side';
    return [`after block ${block}`, `After block ${block} the last token, from which the answer is begun, lies at ` +
        `${number(end)}: ${side} of halfway.`];
}

// ---- 2. a line through the cloud, and the prompts along it

function axis() {
    const degrees = slider('angle');
    const angle = (degrees * Math.PI) / 180;
    const gap = data.mean_harmful[0] - data.mean_harmless[0];
    const middle = [0, 1].map((k) => (data.mean_harmless[k] + data.mean_harmful[k]) / 2);
    const [ux, uy] = [Math.cos(angle), Math.sin(angle)];
    const along = ([x, y]) => ((x - middle[0]) * ux + (y - middle[1]) * uy) / gap;
    const places = {};
    both((kind) => { places[kind] = data[kind].map(along); });
    const svg = canvas('Prompts, a line through them, and the prompts along that line');
    const [width, cloud] = [stage.clientWidth, 150];
    const all = [...data.harmless, ...data.harmful];
    const reach = Math.max(...all.map(([x, y]) => Math.max(Math.abs(x - middle[0]), 1.2 * Math.abs(y - middle[1]))));
    const unit = Math.min((width / 2 - 8) / reach, (cloud / 2 - 4) / Math.max(...all.map(([, y]) => Math.abs(y - middle[1]))));
    const px = ([x, y]) => [width / 2 + (x - middle[0]) * unit, cloud / 2 - (y - middle[1]) * unit];
    const length = Math.max(width, cloud);
    const clip = draw(draw(svg, 'clipPath', { id: 'ace-learn-cloud' }), 'rect', { x: 0, y: 0, width, height: cloud });
    clip.parentNode.id = `ace-learn-cloud-${root.dataset.kind}`;
    const rod = line(svg, 'rod', width / 2 - ux * length, cloud / 2 + uy * length, width / 2 + ux * length, cloud / 2 - uy * length);
    rod.setAttribute('clip-path', `url(#${clip.parentNode.id})`);
    both((kind) => data[kind].forEach((point) => mark(svg, kind, ...px(point))));
    both((kind) => {
        const node = mark(svg, kind, ...px(data[`mean_${kind}`]));
        node.setAttribute('transform', `${node.getAttribute('transform')} scale(2)`);
        node.classList.add('ace-learn-mean');
    });
    const most = Math.max(1.6, reach / gap);
    const x = scale(-most, most, 12, width - 12);
    line(svg, 'grid', 0, cloud + 8, width, cloud + 8);
    both((kind, row) => places[kind].forEach((place) => mark(svg, kind, x(place), cloud + 36 + 30 * row)));
    line(svg, 'decision', x(0), cloud + 18, x(0), cloud + 82);
    both((kind) => line(svg, kind === 'harmless' ? 'low' : 'high', x(along(data[`mean_${kind}`])), cloud + 18, x(along(data[`mean_${kind}`])), cloud + 82));
    label(svg, width / 2, HEIGHT - 8, 'the same prompts, as they lie along the line');
    const left = Math.cos(angle);
    const wrong = places.harmless.filter((c) => c > 0).length + places.harmful.filter((c) => c <= 0).length;
    root.dataset.gap = String(left);
    return [`${number(degrees, 0)}°`, `Along this line the means lie ${number(left)} of the class gap apart, and ${wrong} of ` +
        `${all.length} prompts fall on the wrong side of halfway.`];
}

// ---- 3 to 5. the plane, moved by a method

function map() {
    const low = data.mean_harmless[0];
    const gap = data.mean_harmful[0] - low;
    const alpha = sliders.alpha ? slider('alpha') : 0;
    const chosen = method() || data.kind;
    const coordinate = (x) => (x - low) / gap;
    const at = coordinate(data.origin[0]);
    const origin = sliders.origin ? slider('origin') : at;
    // Where the origin lies changes what is counted from it; all else is counted from the means.
    const shift = (at - origin) * gap;
    const edit = data.edits.find((one) => one.method === chosen && (!one.reference || one.reference === 'harmless'));
    const base = edit.remove && edit.constant !== '0' ? edit.base + shift : edit.base;
    const moved = (c) => {
        const v = low + shift + c * gap;
        return (v + base + edit.slope * alpha - edit.remove * v - low - shift) / gap;
    };
    root.dataset.method = chosen;
    const svg = canvas('Prompts before and after the edit');
    const [width, top, bottom] = [stage.clientWidth, 24, HEIGHT - 44];
    const places = [...data.harmless, ...data.harmful].map(([x]) => coordinate(x));
    const [from, to] = [Math.min(...places) - 1.1, Math.max(...places) + (sliders.alpha ? 2.1 : 1.1)];
    const x = scale(from, to, 10, width - 10);
    const heights = [...data.harmless, ...data.harmful].map(([, y]) => y);
    const y = scale(Math.min(...heights), Math.max(...heights), bottom - 8, top + 8);
    for (let c = Math.ceil(from); c <= to; c += 1) {
        line(svg, 'grid', x(c), top, x(c), bottom);
        words(svg, x(c), bottom + 15, number(c, 0));
    }
    words(svg, width / 2, HEIGHT - 10, 'refusal coordinate c');
    classes(svg, x, top, bottom);
    const ghosts = draw(svg, 'g', { class: 'ace-learn-ghosts' });
    both((kind) => data[kind].forEach(([v, h]) => mark(ghosts, kind, x(coordinate(v)), y(h))));
    const cloud = draw(svg, 'g', { class: 'ace-learn-cloud' });
    both((kind) => data[kind].forEach(([v, h]) => mark(cloud, kind, x(moved(coordinate(v))), y(h), moved(coordinate(v)))));
    if (data.kind === 'origin') {
        const middle = (top + bottom) / 2;
        draw(svg, 'path', { class: 'ace-learn-origin', d: `M${x(origin) - 8},${middle}h16M${x(origin)},${middle - 8}v16` });
        const name = words(svg, x(origin) + 10, middle - 9, 'origin', 'start');
        name.setAttribute('class', 'ace-learn-note');
    }
    const over = (kind) => data[kind].filter(([v]) => moved(coordinate(v)) > 0.5).length;
    const counts = `${over('harmful')} of ${data.harmful.length} harmful and ${over('harmless')} of ${data.harmless.length} harmless prompts`;
    const shown = sliders.origin ? `${number(origin)}${Math.abs(origin - at) < 0.03 ? ', as in the model' : ''}` : number(alpha);
    if (edit.remove) return [shown, `Every prompt now lies at coordinate ${number(moved(0))}, on the ` +
        `${moved(0) > 0.5 ? 'harmful' : 'harmless'} side of halfway.`];
    return [shown, `Every prompt was moved by ${number(alpha)}: ${counts} lie beyond halfway.`];
}

// ---- 6. held-out prompts at one block, and AUROC at all

function layers() {
    const block = slider('block');
    const svg = canvas('Held-out prompts at one block, and AUROC by block');
    const [width, top, bottom, floor] = [stage.clientWidth, 24, 118, HEIGHT - 36];
    const x = scale(-2, 3, 10, width - 10);
    const clamped = (c) => Math.min(2.95, Math.max(-1.95, c));
    for (let c = -2; c <= 3; c += 1) line(svg, 'grid', x(c), top, x(c), bottom);
    classes(svg, x, top, bottom);
    both((kind) => {
        const middle = kind === 'harmless' ? 50 : 92;
        data[kind][block].forEach((c, index) => mark(svg, kind, x(clamped(c)), middle + ((index * 7) % 23) - 11, c));
    });
    words(svg, 10, bottom + 14, 'refusal coordinate c at the chosen block', 'start');
    const across = scale(0, data.blocks - 1, 40, width - 14);
    const up = scale(0.5, 1, floor, 152);
    line(svg, 'grid', 40, up(1), width - 14, up(1));
    line(svg, 'decision', 40, up(0.5), width - 14, up(0.5));
    words(svg, 34, up(1) + 4, '1', 'end');
    words(svg, 34, up(0.5) + 4, '½', 'end');
    const points = data.auroc.map((value, index) => `${across(index).toFixed(1)},${up(Math.max(0.5, value)).toFixed(1)}`);
    draw(svg, 'polyline', { class: 'ace-learn-curve', points: points.join(' ') });
    line(svg, 'rod', across(block), 150, across(block), floor);
    draw(svg, 'circle', { class: 'ace-learn-dot', cx: across(block), cy: up(Math.max(0.5, data.auroc[block])), r: 5 });
    words(svg, across(0), floor + 15, 'block 0', 'start');
    words(svg, across(data.blocks - 1), floor + 15, String(data.blocks - 1), 'end');
    label(svg, across(data.block), floor + 15, `${data.block}, recommended`);
    words(svg, width / 2, HEIGHT - 5, 'AUROC by block');
    const wrong = data.harmless[block].filter((c) => c > 0.5).length + data.harmful[block].filter((c) => c <= 0.5).length;
    const all = data.harmless[block].length + data.harmful[block].length;
    return [String(block), `At block ${block} AUROC is ${number(data.auroc[block], 3)}; ${wrong} of ${all} held-out prompts lie on the ` +
        'wrong side of halfway.'];
}

// ---- 7. one prompt at every block

function drift() {
    const arm = data.arms.find((one) => one.method === method());
    root.dataset.method = arm.method;
    const svg = canvas('Refusal coordinate of the last prompt token by block');
    const [width, top, bottom] = [stage.clientWidth, 14, 166];
    const x = scale(0, arm.after.length - 1, 34, width - 14);
    const values = data.arms.flatMap((one) => [...one.after, ...one.before]);
    const y = scale(Math.min(-0.5, ...values), Math.max(1.5, ...values), bottom, top);
    for (const [c, kind] of [[0, 'low'], [1, 'high']]) {
        line(svg, kind, 34, y(c), width - 14, y(c));
        words(svg, 28, y(c) + 4, String(c), 'end');
    }
    line(svg, 'rod', x(data.block), top, x(data.block), bottom);
    label(svg, x(data.block), bottom + 14, `edited: block ${data.block}`);
    const path = (points) => points.map((c, index) => `${x(index).toFixed(1)},${y(c).toFixed(1)}`).join(' ');
    const baseline = data.arms.find((one) => one.method === 'baseline');
    draw(svg, 'polyline', { class: 'ace-learn-plain', points: path(baseline.after) });
    draw(svg, 'polyline', { class: 'ace-learn-curve', points: path(arm.after) });
    const dot = draw(svg, 'circle', { class: 'ace-learn-dot', cx: x(data.block), cy: y(arm.after[data.block]), r: 5 });
    dot.dataset.c = String(arm.after[data.block]);
    for (const [c, name] of [[1, 'harmful mean'], [0, 'harmless mean']]) {
        words(svg, width - 14, y(c) - 5, name, 'end').setAttribute('class', 'ace-learn-note');
    }
    words(svg, 34, bottom + 14, 'block 0', 'start');
    words(svg, width - 14, bottom + 14, String(arm.after.length - 1), 'end');
    const box = draw(svg, 'foreignObject', { x: 0, y: bottom + 22, width, height: HEIGHT - bottom - 22 });
    const text = document.createElement('p');
    text.className = 'ace-learn-answer';
    text.textContent = `“${arm.text}” (${arm.verdict})`;
    box.append(text);
    const last = arm.after.length - 1;
    return ['', `Coordinate ${number(arm.after[data.block])} as block ${data.block} hands it on, ${number(arm.after[last])} ` +
        `after block ${last}; without an edit ${number(baseline.after[data.block])} and ${number(baseline.after[last])}.`];
}

// ---- 8. Wilson's interval

function wilson(share, n) {
    const z = 1.96;
    const centre = share + (z * z) / (2 * n);
    const half = z * Math.sqrt((share * (1 - share)) / n + (z * z) / (4 * n * n));
    return [centre - half, centre + half].map((value) => value / (1 + (z * z) / n));
}

function interval() {
    const n = slider('count');
    const svg = canvas('Shares of refusals with 95 % intervals');
    const width = stage.clientWidth;
    const x = scale(0, 1, 40, width - 20);
    for (let k = 0; k <= 4; k += 1) {
        line(svg, 'grid', x(k / 4), 20, x(k / 4), 190);
        words(svg, x(k / 4), 208, `${25 * k} %`);
    }
    words(svg, width / 2, 232, 'share of answers that are refusals, 95 % interval');
    const ranges = data.shares.map((share) => wilson(share, n));
    data.shares.forEach((share, row) => {
        const y = 70 + 70 * row;
        const [from, to] = ranges[row];
        words(svg, 30, y + 4, 'AB'[row], 'end');
        const bar = draw(svg, 'path', { class: 'ace-learn-bar', d: `M${x(from)},${y - 9}v18M${x(to)},${y - 9}v18M${x(from)},${y}H${x(to)}` });
        Object.assign(bar.dataset, { from, to });
        draw(svg, 'circle', { class: 'ace-learn-dot', cx: x(share), cy: y, r: 6 });
        label(svg, x((from + to) / 2), y - 16, `${Math.round(share * n)} of ${n}: ${number(100 * from, 0)} to ${number(100 * to, 0)} %`);
    });
    const apart = ranges[0][0] > ranges[1][1];
    return [String(n), apart ? `With ${n} prompts each the intervals lie apart: A does leave more refusals.`
        : `With ${n} prompts each the intervals still overlap: too little to tell.`];
}

const draws = { stream, axis, addition: map, origin: map, ace: map, layers, drift, interval };

function update() {
    if (!stage.clientWidth) return;
    const [shown, sentence] = draws[data.kind]();
    for (const name of Object.keys(sliders)) slot(name).textContent = shown;
    if (said.textContent !== sentence) said.textContent = sentence;
}

const starts = { block: data.block, angle: 35, alpha: data.kind === 'addition' ? -1 : 1, count: 10 };
if (data.kind === 'origin') starts.origin = (data.origin[0] - data.mean_harmless[0]) / (data.mean_harmful[0] - data.mean_harmless[0]);
for (const [name, node] of Object.entries(sliders)) node.value = String(starts[name]);
root.addEventListener('input', update);
new ResizeObserver(update).observe(stage);
update();
