// Continues geometry_scene.js.
function update(glide = false) {
    const edit = chosen();
    root.dataset.method = state.method;
    root.dataset.reference = state.reference;
    Object.assign(root.dataset, { remove: edit.remove, add: edit.add, alpha: state.alpha });
    slider.disabled = !edit.scaled;
    for (const radio of root.querySelectorAll('[data-group=reference] input')) radio.disabled = state.method !== 'ace';
    if (parts) {
        root.classList.toggle('ace-geo-gliding', glide);
        slide(edit);
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
