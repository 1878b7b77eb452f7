const plot = element.querySelector('.ace-plot');
const compact = plot.dataset.compact === 'true';
const coarse = window.matchMedia('(pointer: coarse)').matches;
let config = null;

// Saved on the page's own background: in the dark theme light letters on nothing could not be read.
function save(format) {
    return {
        name: format.toUpperCase(),
        title: `Save as ${format.toUpperCase()}`,
        icon: format === 'png' ? Plotly.Icons.camera : Plotly.Icons.disk,
        click: ({ data, layout }) => {
            const paper = getComputedStyle(plot).getPropertyValue('--ace-surface').trim();
            const [width, height] = [plot.clientWidth, plot.clientHeight];
            const filename = plot.closest('.block')?.id || 'plot';
            Plotly.downloadImage({ data, layout: { ...layout, paper_bgcolor: paper } }, { format, width, height, filename, scale: 2 });
        },
    };
}

function configured() {
    config ??= {
        displaylogo: false,
        displayModeBar: compact || coarse ? false : 'hover',
        modeBarButtonsToRemove: ['select2d', 'lasso2d', 'autoScale2d', 'toImage'],
        modeBarButtonsToAdd: [save('png'), save('svg')],
        scrollZoom: false,
        responsive: false,
        topojsonURL: '',
    };
    return config;
}

// Theme-dependent colours arrive as "var(--name, #fallback)".
function resolve(node, style) {
    if (typeof node === 'string') {
        const match = /^var\((--[\w-]+),\s*(.+)\)$/.exec(node);
        return match ? style.getPropertyValue(match[1]).trim() || match[2] : node;
    }
    if (Array.isArray(node)) {
        return node.map((item) => (typeof item === 'number' ? item : resolve(item, style)));
    }
    if (node && typeof node === 'object') {
        return Object.fromEntries(Object.entries(node).map(([key, item]) => [key, resolve(item, style)]));
    }
    return node;
}

function draw() {
    if (!props.value || !plot.isConnected || !plot.clientWidth) return;
    const figure = JSON.parse(props.value);
    const style = getComputedStyle(plot);
    const layout = resolve(figure.layout, style);
    layout.font = { ...layout.font, family: style.fontFamily };
    layout.width = plot.clientWidth;
    layout.hoverlabel = {
        ...layout.hoverlabel,
        bgcolor: style.getPropertyValue('--ace-surface').trim(),
        font: { ...layout.font },
    };
    layout.modebar = { bgcolor: 'rgba(0,0,0,0)', color: layout.font.color, activecolor: layout.font.color };
    // A finger that scrolls the page must not draw a zoom box.
    if (coarse || compact) layout.dragmode = false;
    const data = resolve(figure.data, style);
    if (plot.clientWidth < 520) {
        // No room for coefficients in the legend, nor for many slanted names.
        data.forEach((trace) => { if (trace.name) trace.name = trace.name.split(',')[0]; });
        if (layout.xaxis.nticks) layout.xaxis.nticks = 10;
    }
    plot.setAttribute('aria-label', figure.layout.meta.summary);
    Plotly.react(plot, data, layout, configured());
    // The label says it in words; hundreds of tick labels read one by one do not.
    plot.querySelectorAll('.main-svg').forEach((drawing) => drawing.setAttribute('aria-hidden', 'true'));
    plot.dataset.drawn = String(Number(plot.dataset.drawn || 0) + 1);
}

// Draws at most half of the time, so that a slow machine stays responsive; a plot out of sight waits until things
// have calmed down.
let near = false;
let timer = 0;
let free = 0;

function schedule() {
    if (timer && near) return;
    clearTimeout(timer);
    const wait = near ? Math.max(0, free - performance.now()) : 700;
    timer = setTimeout(() => requestAnimationFrame(() => {
        timer = 0;
        const start = performance.now();
        draw();
        free = performance.now() + (performance.now() - start);
    }), wait);
}

new IntersectionObserver((entries) => {
    near = entries[entries.length - 1].isIntersecting;
    if (!near || !timer) return;
    clearTimeout(timer);
    timer = 0;
    schedule();
}, { rootMargin: '200px' }).observe(plot);
watch('value', schedule);
new ResizeObserver(schedule).observe(plot);
const themed = new MutationObserver(schedule);
for (const root of [document.documentElement, document.body]) {
    themed.observe(root, { attributes: true, attributeFilter: ['class'] });
}
schedule();
