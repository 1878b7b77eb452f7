// The data, the scales and the edit; one script with the others, see geometry/tab.py.
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
