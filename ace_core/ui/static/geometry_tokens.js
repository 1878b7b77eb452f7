// Continues geometry_scene.js: the tokens of the visitor's prompt, if the server has put any there.
const STAR = 'M0,-5.6L1.5,-1.9L5.4,-1.7L2.4,0.8L3.4,4.6L0,2.5L-3.4,4.6L-2.4,0.8L-5.4,-1.7L-1.5,-1.9Z';
const REACH = 22;
const putting = root.querySelector('[data-tokens=put]');
const removing = root.querySelector('[data-tokens=remove]');
const recorded = [Math.min(...points.map(({ x }) => x)), Math.max(...points.map(({ x }) => x))];
let tokens = [];
let current = null;
let waiting = false;

const clamp = (value, least, most) => Math.min(most, Math.max(least, value));
const beyond = (edit, { x, y }) => {
    const now = moved(edit, x);
    return now < left || now > right || y < bottom || y > top;
};

// Where a mark is drawn inside the cloud, which the edit moves by what is put back; beyond the picture, at its edge.
function placeToken(index, edit) {
    const [token, node] = [tokens[index], parts.tokens[index]];
    const stays = token.x - edit.remove * token.x;
    const [x, y] = [clamp(stays + edit.add, left, right) - edit.add, clamp(token.y, bottom, top)];
    node.style.transform = `translate(${px(x).toFixed(2)}px, ${py(y).toFixed(2)}px)`;
    Object.assign(node.dataset, { x: stays, y: token.y });
    node.toggleAttribute('data-beyond', beyond(edit, token));
}

function drawTokens() {
    if (!parts) return;
    parts.stars?.remove();
    parts.stars = draw(parts.cloud, 'g', { class: 'ace-geo-tokens', role: 'group' });
    parts.stars.setAttribute('aria-label', 'Tokens of your prompt; left and right go from one to the next');
    parts.tokens = tokens.map((_, index) => {
        const node = draw(parts.stars, 'g', { class: 'ace-geo-point ace-geo-token', tabindex: -1, role: 'img', 'data-token': index });
        node.toggleAttribute('data-last', index === tokens.length - 1);
        draw(node, 'path', { d: STAR });
        return node;
    });
    parts.tokensRemoved = null;
    select(current);
}

// Only tokens that lie further out than any recorded prompt can leave the picture, so only they cost time in a drag.
function slideTokens(edit) {
    const all = parts.tokensRemoved !== edit.remove;
    parts.tokensRemoved = edit.remove;
    tokens.forEach(({ x }, index) => {
        if (all || (!edit.remove && (x < recorded[0] || x > recorded[1]))) placeToken(index, edit);
    });
    tellToken(edit);
}

function tokenWords(edit, index) {
    const token = tokens[index];
    const [before, after] = [token.x, moved(edit, token.x)].map((x) => gaps(coordinate(x)));
    const outside = beyond(edit, token) ? ', beyond the edge of the picture' : '';
    return `coordinate ${before} before, ${after} after; height ${units(token.y)}${outside}`;
}

function tellToken(edit) {
    if (current === null) return;
    const text = `Token ${current + 1} of ${tokens.length}, “${tokens[current].text}”: ${tokenWords(edit, current)}.`;
    slot('token').textContent = text;
    const node = parts?.tokens?.[current];
    if (!node) return;
    node.setAttribute('aria-label', text);
    (node.querySelector('title') || draw(node, 'title')).textContent = text;
}

function select(index) {
    current = index !== null && tokens[index] ? index : null;
    if (!parts?.tokens) return;
    const entry = current ?? tokens.length - 1;
    parts.tokens.forEach((node, position) => {
        node.setAttribute('tabindex', position === entry ? 0 : -1);
        node.toggleAttribute('data-current', position === current);
    });
    if (current === null) slot('token').textContent = '';
    else tellToken(chosen());
}

function nearest(event) {
    const frame = parts.svg.getBoundingClientRect();
    const distance = (node) => {
        const box = node.getBoundingClientRect();
        return Math.hypot(box.x + box.width / 2 - event.clientX, box.y + box.height / 2 - event.clientY);
    };
    if (event.clientX < frame.left || event.clientX > frame.right) return null;
    const [best] = parts.tokens.map((node, index) => [distance(node), index]).sort(([a], [b]) => a - b);
    return best && best[0] <= REACH ? best[1] : null;
}

function show(found) {
    tokens = found;
    current = null;
    removing.hidden = !tokens.length;
    root.toggleAttribute('data-with-tokens', tokens.length > 0);
    drawTokens();
    if (parts) slideTokens(chosen());
    select(tokens.length ? tokens.length - 1 : null);
}

function receive() {
    const { put } = JSON.parse(props.value);
    if (!put) return;
    waiting = put.kind === 'waiting';
    putting.setAttribute('aria-disabled', waiting);
    const line = slot('tokens');
    line.dataset.kind = put.kind;
    line.textContent = put.text;
    if (put.tokens) show(put.tokens);
}

function listenToTokens() {
    const indexOf = (target) => target.closest?.('[data-token]')?.dataset.token ?? null;
    plot.addEventListener('pointerover', ({ target }) => {
        if (indexOf(target) !== null) select(Number(indexOf(target)));
    });
    plot.addEventListener('click', (event) => {
        const index = tokens.length && !event.target.closest('.ace-geo-handle') ? nearest(event) : null;
        if (index !== null) select(index);
    });
    plot.addEventListener('focusin', ({ target }) => {
        if (indexOf(target) !== null && Number(indexOf(target)) !== current) select(Number(indexOf(target)));
    });
    plot.addEventListener('keydown', (event) => {
        if (indexOf(event.target) === null) return;
        const last = tokens.length - 1;
        const ways = { ArrowLeft: current - 1, ArrowRight: current + 1, Home: 0, End: last };
        if (!(event.key in ways)) return;
        event.preventDefault();
        select(clamp(ways[event.key], 0, last));
        parts.tokens[current].focus({ preventScroll: true });
    });
    putting.addEventListener('click', () => {
        if (waiting) return;
        waiting = true;
        putting.setAttribute('aria-disabled', true);
        trigger('submit');
    });
    removing.addEventListener('click', () => {
        show([]);
        Object.assign(slot('tokens'), { textContent: 'Removed.' }).dataset.kind = 'idle';
        putting.focus();
    });
    watch('value', receive);
    receive();
}
if (putting) listenToTokens();
