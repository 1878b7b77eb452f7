const root = element.querySelector('.ace-card');

function make(tag, className, text, parent) {
    const node = document.createElement(tag);
    node.className = className;
    node.textContent = text;
    parent.append(node);
    return node;
}

function draw() {
    if (!props.value) return;
    const value = JSON.parse(props.value);
    root.replaceChildren();
    root.dataset.status = value.status;
    const head = make('div', 'ace-card-head', '', root);
    make('strong', 'ace-card-name', value.name, head);
    make('span', 'ace-card-state', value.status, head);
    if (value.message) make('p', 'ace-card-message', value.message, root);
    if (value.status === 'loading') {
        const bar = make('progress', 'ace-card-progress', '', root);
        bar.setAttribute('aria-label', value.message);
        bar.max = 1;
        if (value.progress !== null && value.progress !== undefined) bar.value = value.progress;
    }
    if (value.facts.length) {
        const list = make('dl', 'ace-card-facts', '', root);
        for (const [name, fact] of value.facts) {
            const pair = make('div', '', '', list);
            make('dt', '', name, pair);
            make('dd', '', fact, pair);
        }
    }
}

watch('value', draw);
draw();
