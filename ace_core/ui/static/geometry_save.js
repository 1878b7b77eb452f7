// Continues geometry_scene.js. A picture to take away looks like the one on the page, without the page's style sheet.
const KEPT = ['fill', 'fill-opacity', 'stroke', 'stroke-width', 'stroke-dasharray', 'opacity', 'display', 'font', 'text-anchor'];

function pictured() {
    const copy = parts.svg.cloneNode(true);
    const [nodes, copies] = [parts.svg, copy].map((svg) => [svg, ...svg.querySelectorAll('*')]);
    nodes.forEach((node, index) => {
        const [style, target] = [getComputedStyle(node), copies[index]];
        target.removeAttribute('style');
        for (const name of KEPT) target.style.setProperty(name, style.getPropertyValue(name));
        // An attribute, because other programs know no transform in a style.
        if (style.transform !== 'none') target.setAttribute('transform', style.transform);
    });
    const paper = draw(copy, 'rect', { width: size.width, height: size.height });
    paper.setAttribute('fill', getComputedStyle(root).getPropertyValue('--ace-surface').trim());
    copy.prepend(paper);
    copy.setAttribute('xmlns', 'http://www.w3.org/2000/svg');
    return new Blob([new XMLSerializer().serializeToString(copy)], { type: 'image/svg+xml' });
}

async function painted(blob) {
    const picture = new Image();
    picture.src = URL.createObjectURL(blob);
    await picture.decode();
    const canvas = document.createElement('canvas');
    [canvas.width, canvas.height] = [2 * size.width, 2 * size.height];
    canvas.getContext('2d').drawImage(picture, 0, 0, canvas.width, canvas.height);
    URL.revokeObjectURL(picture.src);
    return new Promise((resolve) => canvas.toBlob(resolve, 'image/png'));
}

async function save(format) {
    const blob = format === 'svg' ? pictured() : await painted(pictured());
    const link = document.createElement('a');
    Object.assign(link, { href: URL.createObjectURL(blob), download: `geometry.${format}` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

root.addEventListener('click', ({ target }) => {
    if (parts && target.dataset.save) save(target.dataset.save);
});
