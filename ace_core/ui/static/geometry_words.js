// Continues geometry_scene.js.
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
