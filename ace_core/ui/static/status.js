const line = element.querySelector('.ace-status');

function draw() {
    const value = props.value ? JSON.parse(props.value) : {};
    line.dataset.kind = value.kind || 'idle';
    if (line.textContent !== (value.text || '')) line.textContent = value.text || '';
}

watch('value', draw);
draw();
