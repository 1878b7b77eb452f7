const plot = element.querySelector('.ace-plot');
const compact = plot.dataset.compact === 'true';
const coarse = window.matchMedia('(pointer: coarse)').matches;
const config = {
    displaylogo: false,
    displayModeBar: compact ? false : 'hover',
    modeBarButtonsToRemove: ['select2d', 'lasso2d', 'autoScale2d'],
    scrollZoom: false,
    responsive: false,
    topojsonURL: '',
};

// Theme-dependent colours arrive as "var(--name, #fallback)".
function resolve(node, style) {
    if (typeof node === 'string') {
        const match = /^var\((--[\w-]+),\s*(.+)\)$/.exec(node);
        return match ? style.getPropertyValue(match[1]).trim() || match[2] : node;
    }
    if (Array.isArray(node)) {
        return typeof node[0] === 'number' ? node.slice() : node.map((item) => resolve(item, style));
    }
    if (node && typeof node === 'object') {
        return Object.fromEntries(Object.entries(node).map(([key, item]) => [key, resolve(item, style)]));
    }
    return node;
}

function draw() {
    const figure = props.value;
    if (!figure || !figure.layout || !plot.isConnected || !plot.clientWidth) return;
    const style = getComputedStyle(plot);
    const layout = resolve(figure.layout, style);
    layout.font = { ...layout.font, family: style.fontFamily };
    layout.width = plot.clientWidth;
    layout.hoverlabel = {
        ...layout.hoverlabel,
        bgcolor: style.getPropertyValue('--ace-surface').trim(),
        font: { ...layout.font },
    };
    // A finger that scrolls the page must not draw a zoom box.
    if (coarse || compact) layout.dragmode = false;
    plot.setAttribute('aria-label', (figure.layout.meta && figure.layout.meta.summary) || '');
    Plotly.react(plot, resolve(figure.data, style), layout, config);
    plot.dataset.drawn = String(Number(plot.dataset.drawn || 0) + 1);
}

let waiting = false;
function schedule() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
        waiting = false;
        draw();
    });
}

watch('value', schedule);
new ResizeObserver(schedule).observe(plot);
const themed = new MutationObserver(schedule);
for (const root of [document.documentElement, document.body]) {
    themed.observe(root, { attributes: true, attributeFilter: ['class'] });
}
schedule();
