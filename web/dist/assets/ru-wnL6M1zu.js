import{e as o}from"./index-UXL-Bci7.js";const e=o;export{e as ru};
